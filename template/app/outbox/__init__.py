"""The transactional outbox: events are rows of the transaction they tell of; relays send them."""
