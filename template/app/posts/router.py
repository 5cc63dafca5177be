"""Posts over HTTP."""

from typing import Annotated

from fastapi import APIRouter, Depends, Response
from pydantic import AfterValidator, Field, StringConstraints

from app.platform.http.dependencies import IdempotencyDep, UnitOfWorkDep
from app.platform.http.idempotency import StoredResponse
from app.platform.http.problems import responses
from app.platform.http.schemas import Id, RequestModel, ResponseModel, reject_nul
from app.posts.repository import PostRepository
from app.posts.service import PostService
from app.users.repository import UserRepository

Title = Annotated[
    str,
    # Before the validator: constraints that follow one are checked on the unstripped text.
    StringConstraints(strip_whitespace=True, min_length=1, max_length=200),
    AfterValidator(reject_nul),
    Field(examples=["On engines"]),
]
Text = Annotated[
    str,
    StringConstraints(max_length=100_000),
    AfterValidator(reject_nul),
    Field(examples=["They weave algebraic patterns."]),
]


class PostCreate(RequestModel):
    author_id: Id
    title: Title
    body: Text


class PostResponse(ResponseModel):
    id: int
    author_id: int
    title: str
    body: str


async def get_post_service(uow: UnitOfWorkDep) -> PostService:
    return PostService(PostRepository(uow.session), UserRepository(uow.session), uow.events)


PostServiceDep = Annotated[PostService, Depends(get_post_service, scope="function")]

router = APIRouter(prefix="/posts", tags=["posts"], responses=responses(422, 500, 503))


@router.post(
    "",
    status_code=201,
    summary="Publish a post",
    response_model=PostResponse,
)
async def publish_post(
    post: PostCreate, service: PostServiceDep, idempotency: IdempotencyDep
) -> Response:
    """Publishes `post.published`, whose consumer counts it on the author's profile. With an
    `Idempotency-Key` the request can be repeated for a day: the same key and body are one post."""

    async def publish() -> StoredResponse:
        published = await service.publish(post.author_id, post.title, post.body)
        return StoredResponse.of(201, PostResponse.model_validate(published))

    return await idempotency.respond("POST /posts", post.model_dump_json(), publish)
