from collections.abc import Mapping
from datetime import datetime

from sqlalchemy import func
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from app.models import Profile


class ProfileRepository:
    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def create(self, user_id: int, created_at: datetime) -> None:
        """The profile exists from now on, with the posts that were counted before it did."""
        new = insert(Profile).values(user_id=user_id, created_at=created_at)
        await self._session.execute(
            new.on_conflict_do_update(
                index_elements=[Profile.user_id],
                set_={"created_at": func.coalesce(Profile.created_at, new.excluded.created_at)},
            )
        )

    async def add_posts(self, posts: Mapping[int, int]) -> None:
        """Add to each author's number of posts, whether or not the profile exists yet."""
        if not posts:
            return
        new = insert(Profile).values(
            [
                {"user_id": author, "posts_published": number}
                for author, number in sorted(posts.items())
            ]
        )
        total = Profile.posts_published + new.excluded.posts_published
        await self._session.execute(
            new.on_conflict_do_update(
                index_elements=[Profile.user_id], set_={"posts_published": total}
            )
        )
