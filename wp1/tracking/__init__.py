"""What is published to MLflow, made from folders only, and its publication.

entry.py    one MLflow run as plain data, and the names and values that MLflow accepts
run.py      a run's entry, with one below it for each cell
cells.py    the cells of a run, and curves over the prompt length
metrics.py  the figures of a run as a whole, by name
sweep.py    a sweep's entry, above its runs
page.py     a report as one HTML file

These are pure. Two modules publish them:

store.py         the store that `tracking.uri` names, and exclusive access to it
mlflow_store.py  sends entries; the only module that imports mlflow
"""
