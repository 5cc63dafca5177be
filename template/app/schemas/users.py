from datetime import datetime

from app.models import Profile, User
from app.schemas.fields import Email, Phone, RequestModel, ResponseModel, Username


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
