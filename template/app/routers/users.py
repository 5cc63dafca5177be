"""Users and their posts over HTTP."""

from fastapi import APIRouter, Response

from app.dependencies import PathId, PostServiceDep, UsersDep, UserServiceDep
from app.errors import NotFound, responses, with_headers
from app.schemas import PostCreate, PostResponse, UserCreate, UserResponse

router = APIRouter(responses=responses(422, 500, 503))


@router.post(
    "/users",
    status_code=201,
    tags=["users"],
    summary="Sign a user up",
    responses=responses(409) | with_headers(201, Location="The user's URL"),
)
async def create_user(
    user: UserCreate, service: UserServiceDep, response: Response
) -> UserResponse:
    """Publishes `user.created`, whose consumer makes the profile. 409 when the e-mail address or
    the username is taken."""
    created = await service.create(user.email, user.username, user.phone)
    response.headers["Location"] = f"/users/{created.id}"
    return UserResponse.of(created)


@router.get(
    "/users/{user_id}",
    tags=["users"],
    summary="Get a user with the profile",
    responses=responses(404),
)
async def get_user(user_id: PathId, users: UsersDep) -> UserResponse:
    """`profile` is null until the consumer of `user.created` has made it."""
    found = await users.with_profile(user_id)
    if found is None:
        raise NotFound("user", user_id)
    return UserResponse.of(*found)


@router.post("/posts", status_code=201, tags=["posts"], summary="Publish a post")
async def publish_post(post: PostCreate, service: PostServiceDep) -> PostResponse:
    """Publishes `post.published`, whose consumer counts it on the author's profile."""
    published = await service.publish(post.author_id, post.title, post.body)
    return PostResponse.model_validate(published)
