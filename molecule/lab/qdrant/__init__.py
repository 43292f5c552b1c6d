"""What the lab's vector host serves: Qdrant's engine, in process, by Qdrant's REST and gRPC, and GraphQL, on one port.

It runs on that host alone, where `files/requirements/lab-qdrant.txt` is installed. What it does not do is listed in
docs/lab-qdrant.md; asked for it, it says so.
"""
