"""Real servers for development and tests: PostgreSQL and Apache Kafka as children of this process.

Nothing here is imported in production, and the development dependencies are imported only when a
server is started.
"""
