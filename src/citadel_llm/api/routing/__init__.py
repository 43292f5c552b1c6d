"""Where a request goes, and whether: decisions alone, without sockets; clocks and randomness are passed in."""
