"""What all chapters of a report share: tables, metrics, cells, Markdown and the style of plots."""
