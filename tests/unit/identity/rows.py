"""Rows of the database, for tests that need none."""

from citadel_llm.integration.database.identity import GrantRow, Identities, KeyRow, UserRow


def identities(*, users=(), grants=(), keys=(), limits=(), budgets=(), version=1, read_at=1000.0):
    """`users` are {name: (roles, password_hash)}, `keys` are {digest: (user, models, permissions, expires_at)}."""
    return Identities(
        version=version,
        read_at=read_at,
        users=[UserRow(f"id-of-{name}", name, kept, list(roles)) for name, (roles, kept) in dict(users).items()],
        grants=[GrantRow(*grant) for grant in grants],
        keys=[
            KeyRow(digest, f"key-of-{user}", f"id-of-{user}", "a key", expires_at, models, permissions)
            for digest, (user, models, permissions, expires_at) in dict(keys).items()
        ],
        limits=list(limits),
        budgets=list(budgets),
    )
