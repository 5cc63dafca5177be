from app import wiring
from app.about import SERVICE_NAME
from app.kafka.event import EventRegistry
from tests.unit.events.samples import golden_samples


def test_topics_are_service_entity_action() -> None:
    registry = EventRegistry(SERVICE_NAME, wiring.EVENTS)
    assert f"{SERVICE_NAME}.user.created" in registry.owned_topics()


def test_every_subscription_reads_registered_events() -> None:
    registry = EventRegistry(SERVICE_NAME, wiring.EVENTS)
    for subscription in wiring.SUBSCRIPTIONS:
        assert subscription.topics(registry)


def test_events_are_keyed_by_the_entity_that_they_are_about() -> None:
    for entry in wiring.EVENTS:
        entity = entry.name.split(".")[0]
        assert entry.model.key_field == f"{entity}_id"


def test_every_golden_sample_belongs_to_an_event() -> None:
    names = {entry.name for entry in wiring.EVENTS}
    assert {sample.parent.name for sample in golden_samples()} == names
