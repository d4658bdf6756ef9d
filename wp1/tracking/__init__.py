"""What is published to MLflow, made from folders only; `wp1.tracking.mlflow_store` sends it. Pure.

entry.py    one MLflow run as plain data, and the names and values that MLflow accepts
run.py      a run's entry, with one below it for each cell
cells.py    the cells of a run, and curves over the prompt length
metrics.py  the figures of a run as a whole, by name
sweep.py    a sweep's entry, above its runs
page.py     a report as one HTML file
"""
