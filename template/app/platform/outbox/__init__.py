"""The transactional outbox: events are rows of the transaction that they report; relays send them."""

from app.platform.outbox import monitor, publisher, relay, wakeup
from app.platform.outbox.settings import OutboxSettings
from app.platform.service import Component, Publishing, Role

component = Component(
    "outbox",
    settings=[OutboxSettings],
    lifespans=[
        ({Role.API, Role.WORKER, Role.RELAY}, monitor.lifespan),
        ({Role.RELAY}, relay.lifespan),
        ({Role.API, Role.WORKER}, wakeup.lifespan),
    ],
    publishing=Publishing(publisher.bind, frozenset({Role.WORKER, Role.RELAY})),
)
