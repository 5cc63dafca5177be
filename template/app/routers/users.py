from fastapi import APIRouter, Response

from app.dependencies import UsersDep, UserServiceDep
from app.errors import NotFound, responses, with_headers
from app.routers.orders import PathId
from app.schemas import UserCreate, UserResponse

router = APIRouter(prefix="/users", tags=["users"], responses=responses(422, 500, 503))


@router.post(
    "",
    status_code=201,
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


@router.get("/{user_id}", summary="Get a user with the profile", responses=responses(404))
async def get_user(user_id: PathId, users: UsersDep) -> UserResponse:
    """`profile` is null until the consumer of `user.created` has made it."""
    found = await users.with_profile(user_id)
    if found is None:
        raise NotFound("user", user_id)
    return UserResponse.of(*found)
