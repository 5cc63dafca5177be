"""Real servers for development and tests: PostgreSQL and Apache Kafka as children of this process.

Production never imports this package. The development dependencies are imported when a server starts.
"""
