"""What is asked and when: prompts and arrivals. Pure; nothing here knows an engine."""
