"""From an uploaded file to pieces of text, in a process of its own that is bounded in memory and time."""
