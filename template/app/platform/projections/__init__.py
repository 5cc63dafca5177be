"""Read models made for reading: what writes them, rebuilds them, and measures how far behind they are.

Only projectors and rebuilds write the tables of read models. There are no foreign keys: what a row
refers to may come later than the row, or from a database that is not this one.
"""

from app.platform.projections import lag
from app.platform.service import Component, Role

component = Component(
    "projections",
    settings=[lag.ProjectionSettings],
    lifespans=[({Role.API}, lag.lifespan)],
)
