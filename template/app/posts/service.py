"""Commands on posts."""

from app.platform.database.unit_of_work import EventPublisher
from app.platform.errors import Unprocessable
from app.posts.events import PostPublished
from app.posts.models import Post
from app.posts.repository import PostRepository
from app.users.repository import UserRepository


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
