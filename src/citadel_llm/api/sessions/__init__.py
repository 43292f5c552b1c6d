"""What is kept between requests: conversations, and responses that others follow."""
