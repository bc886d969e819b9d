"""What is in buckets: objects and their content, parts, and data by URI."""
