"""Users and their posts over HTTP."""

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Depends, Response
from pydantic import AfterValidator, EmailStr, Field

from app.dependencies import IdempotencyDep, IdempotencyKey, PathId, SessionDep, UnitOfWorkDep
from app.errors import NotFound, responses, with_headers
from app.idempotency import Answer
from app.models import Profile, User
from app.repositories.users import PostRepository, UserRepository
from app.schemas import Id, RequestModel, ResponseModel, Text, Title
from app.services.users import PostService, UserService

Email = Annotated[
    EmailStr, Field(max_length=320, examples=["ada@example.com"]), AfterValidator(str.lower)
]
Username = Annotated[
    str,
    Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=50, examples=["ada"]),
]
Phone = Annotated[
    str,
    Field(pattern=r"^\+[1-9][0-9]{6,14}$", description="E.164", examples=["+442079460123"]),
]


class UserCreate(RequestModel):
    email: Email
    username: Username
    phone: Phone | None = None


class ProfileResponse(ResponseModel):
    created_at: datetime
    posts_published: int


class UserResponse(ResponseModel):
    """`profile` is null until the consumer of `user.created` has made it."""

    id: int
    email: str
    username: str
    phone: str | None
    profile: ProfileResponse | None

    @classmethod
    def of(cls, user: User, profile: Profile | None = None) -> "UserResponse":
        return cls(
            id=user.id,
            email=user.email,
            username=user.username,
            phone=user.phone,
            profile=None if profile is None else ProfileResponse.model_validate(profile),
        )


class PostCreate(RequestModel):
    author_id: Id
    title: Title
    body: Text


class PostResponse(ResponseModel):
    id: int
    author_id: int
    title: str
    body: str


async def get_user_service(uow: UnitOfWorkDep) -> UserService:
    return UserService(UserRepository(uow.session), uow.events)


async def get_post_service(uow: UnitOfWorkDep) -> PostService:
    return PostService(PostRepository(uow.session), UserRepository(uow.session), uow.events)


async def get_users(session: SessionDep) -> UserRepository:
    return UserRepository(session)


UserServiceDep = Annotated[UserService, Depends(get_user_service, scope="function")]
PostServiceDep = Annotated[PostService, Depends(get_post_service, scope="function")]
UsersDep = Annotated[UserRepository, Depends(get_users, scope="function")]

router = APIRouter(responses=responses(422, 500, 503))


@router.post(
    "/users",
    status_code=201,
    tags=["users"],
    summary="Sign a user up",
    response_model=UserResponse,
    responses=responses(409) | with_headers(201, Location="The user's URL"),
)
async def create_user(
    user: UserCreate,
    service: UserServiceDep,
    idempotency: IdempotencyDep,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Publishes `user.created`, whose consumer makes the profile. 409 when the e-mail address or
    the username is taken. With an `Idempotency-Key` the request can be repeated for a day: the same
    key and body get the same answer."""

    async def work() -> Answer:
        created = await service.create(user.email, user.username, user.phone)
        body = UserResponse.of(created).model_dump_json().encode()
        return Answer(201, {"Location": f"/users/{created.id}"}, body)

    request = user.model_dump_json()
    return await idempotency.respond("POST /users", idempotency_key, request, work)


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


@router.post(
    "/posts",
    status_code=201,
    tags=["posts"],
    summary="Publish a post",
    response_model=PostResponse,
)
async def publish_post(
    post: PostCreate,
    service: PostServiceDep,
    idempotency: IdempotencyDep,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Publishes `post.published`, whose consumer counts it on the author's profile. With an
    `Idempotency-Key` the request can be repeated for a day: the same key and body are one post."""

    async def work() -> Answer:
        published = await service.publish(post.author_id, post.title, post.body)
        return Answer(201, {}, PostResponse.model_validate(published).model_dump_json().encode())

    request = post.model_dump_json()
    return await idempotency.respond("POST /posts", idempotency_key, request, work)
