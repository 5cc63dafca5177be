"""Users over HTTP."""

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Depends, Response
from pydantic import AfterValidator, EmailStr, Field

from app.platform.errors import NotFound
from app.platform.http.dependencies import (
    IdempotencyDep,
    PathId,
    SessionDep,
    UnitOfWorkDep,
)
from app.platform.http.idempotency import StoredResponse
from app.platform.http.problems import responses, with_headers
from app.platform.http.schemas import RequestModel, ResponseModel
from app.users.models import Profile, User
from app.users.repository import UserRepository
from app.users.service import UserService

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
    """`profile` is null until the consumer of `user.created` has created it."""

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


async def get_user_service(uow: UnitOfWorkDep) -> UserService:
    return UserService(UserRepository(uow.session), uow.events)


async def get_users(session: SessionDep) -> UserRepository:
    return UserRepository(session)


UserServiceDep = Annotated[UserService, Depends(get_user_service, scope="function")]
UsersDep = Annotated[UserRepository, Depends(get_users, scope="function")]

router = APIRouter(prefix="/users", tags=["users"], responses=responses(422, 500, 503))


@router.post(
    "",
    status_code=201,
    summary="Sign a user up",
    response_model=UserResponse,
    responses=responses(409) | with_headers(201, Location="The user's URL"),
)
async def create_user(
    user: UserCreate, service: UserServiceDep, idempotency: IdempotencyDep
) -> Response:
    """Publishes `user.created`, whose consumer creates the profile. 409 if the e-mail address or
    the username is taken. With an `Idempotency-Key` the request can be repeated for a day: the same
    key and body get the same response."""

    async def create() -> StoredResponse:
        created = await service.create(user.email, user.username, user.phone)
        return StoredResponse.of(201, UserResponse.of(created), Location=f"/users/{created.id}")

    return await idempotency.respond("POST /users", user.model_dump_json(), create)


@router.get(
    "/{user_id}",
    summary="Get a user with the profile",
    responses=responses(404),
)
async def get_user(user_id: PathId, users: UsersDep) -> UserResponse:
    """`profile` is null until the consumer of `user.created` has created it."""
    found = await users.with_profile(user_id)
    if found is None:
        raise NotFound("user", user_id)
    return UserResponse.of(*found)
