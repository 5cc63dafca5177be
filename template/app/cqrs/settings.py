"""When the read side counts as too far behind."""

from pydantic import Field

from app.config import EnvSettings


class ProjectionSettings(EnvSettings):
    """`projections_max_lag_seconds`: an API whose read side is further behind is not ready. Unless
    it is set, lag is measured and told, and requests go on."""

    projections_max_lag_seconds: float | None = Field(None, gt=0)
