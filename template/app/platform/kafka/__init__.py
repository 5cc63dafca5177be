"""Kafka for this service: producer, consumer, retries, dead letters. It knows nothing of the business."""
