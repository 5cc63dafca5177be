"""The HTTP contract, the same for every choice of modules: only HTTP, and waiting for what follows.

Each test makes its own users, orders and SKUs, so tests run in any order and beside each other.
"""
