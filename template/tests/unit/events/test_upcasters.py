from app.events.upcasters import user_created_2


def test_a_user_of_version_1_has_no_phone() -> None:
    payload = {"version": "1.0.0", "user_id": 7}
    assert user_created_2(payload) == {"version": "2.0.0", "user_id": 7, "phone": None}


def test_an_upcaster_leaves_its_argument_as_it_was() -> None:
    payload = {"version": "1.0.0"}
    user_created_2(payload)
    assert payload == {"version": "1.0.0"}
