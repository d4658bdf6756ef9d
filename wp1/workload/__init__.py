"""What is sent and when: prompts and arrivals. Nothing here depends on an engine."""
