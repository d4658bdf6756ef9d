"""Scored answers: tasks, their data and wording, and official scores. One module per benchmark; needs no engine."""
