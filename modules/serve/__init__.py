"""A server: it takes scans over HTTP, and answers with label maps and volumes. `docs/serving.md` shows it.

`uploads.py` takes a scan from a request, `desk.py` lets requests wait for their turn, and `answers.py` makes the answer. `app.py` joins
them.
"""
