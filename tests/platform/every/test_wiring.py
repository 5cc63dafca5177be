"""The components of the service, whichever modules it has."""

from app import wiring
from app.platform.config import load
from app.platform.kafka.settings import KafkaSettings
from app.platform.runtime import Context


def test_every_projection_has_a_subscription_of_its_name() -> None:
    projections = {entry.projection.name for entry in wiring.service.projections}

    assert {entry.name for entry in wiring.service.projectors} == projections


def test_no_two_components_have_one_name() -> None:
    names = [part.name for part in wiring.service.components]

    assert len(set(names)) == len(names)


def test_events_and_subscriptions_fit_together() -> None:
    context = Context.of(wiring.service, "shop", load(KafkaSettings))

    assert {topic.name for topic in context.topics()} >= set(context.registry.owned_topics())


def test_the_service_has_routes_and_a_first_request() -> None:
    """Tests of the service skip what needs them, for whoever has removed the example."""
    assert wiring.service.routers
    assert wiring.service.first_request is not None
