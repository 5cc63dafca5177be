"""The repository of posts."""

from sqlalchemy.ext.asyncio import AsyncSession

from app.posts.models import Post


class PostRepository:
    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def add(self, author_id: int, title: str, body: str) -> Post:
        post = Post(author_id=author_id, title=title, body=body)
        self._session.add(post)
        await self._session.flush()
        return post
