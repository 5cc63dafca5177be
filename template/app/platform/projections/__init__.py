"""Read models: projectors, rebuilds, and the lag.

Only projectors and rebuilds write the tables of read models. These have no foreign keys: the row that
another one refers to may come later, or be in another database.
"""

from app.platform.projections import lag
from app.platform.service import Component, Role

component = Component(
    "projections",
    settings=[lag.ProjectionSettings],
    lifespans=[({Role.API}, lag.lifespan)],
)
