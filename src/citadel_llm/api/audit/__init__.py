"""What was done here, by whom: written down before it is answered, and carried to the database afterwards.

`docs/audit.md` says what a record holds, and what becomes of it in each kind of trouble.
"""
