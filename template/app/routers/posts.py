from fastapi import APIRouter

from app.dependencies import PostServiceDep
from app.errors import responses
from app.schemas import PostCreate, PostResponse

router = APIRouter(prefix="/posts", tags=["posts"], responses=responses(422, 500, 503))


@router.post("", status_code=201, summary="Publish a post")
async def publish_post(post: PostCreate, service: PostServiceDep) -> PostResponse:
    """Publishes `post.published`, whose consumer counts it on the author's profile."""
    published = await service.publish(post.author_id, post.title, post.body)
    return PostResponse.model_validate(published)
