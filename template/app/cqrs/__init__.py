"""The read side: read models made for reading, their projectors, queries and rebuilds.

Only projectors and rebuilds write the tables of read models. There are no foreign keys: what a row
refers to may come later than the row, or from a database that is not this one.
"""
