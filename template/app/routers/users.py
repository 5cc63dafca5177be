"""Users and their posts over HTTP."""

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Depends, Response
from pydantic import AfterValidator, EmailStr, Field

from app.dependencies import PathId, SessionDep, UnitOfWorkDep
from app.errors import NotFound, responses, with_headers
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
