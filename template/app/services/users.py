"""Commands on users and their posts."""

from app.errors import Unprocessable
from app.events.types import PostPublished, UserCreated
from app.models import Post, User
from app.repositories.users import PostRepository, UserRepository
from app.unit_of_work import EventPublisher


class UserService:
    def __init__(self, users: UserRepository, events: EventPublisher) -> None:
        self._users = users
        self._events = events

    async def create(self, email: str, username: str, phone: str | None) -> User:
        user = await self._users.add(email, username, phone)
        await self._events.publish(
            UserCreated(user_id=user.id, email=email, username=username, phone=phone)
        )
        return user


class PostService:
    def __init__(
        self, posts: PostRepository, users: UserRepository, events: EventPublisher
    ) -> None:
        self._posts = posts
        self._users = users
        self._events = events

    async def publish(self, author_id: int, title: str, body: str) -> Post:
        if not await self._users.exists(author_id):
            raise Unprocessable(f"there is no user {author_id}", pointer="/author_id")
        post = await self._posts.add(author_id, title, body)
        await self._events.publish(PostPublished(post_id=post.id, author_id=author_id, title=title))
        return post
