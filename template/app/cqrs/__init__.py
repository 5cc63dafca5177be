"""The read side: read models made for reading, their projectors, queries and rebuilds."""
