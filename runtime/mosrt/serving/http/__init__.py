"""Scores over HTTP and WebSocket: the application that `mosrt serve` runs. Needs the extra `serve`.

`mosrt.serving.http.app.create_app` makes the application, for a server of your own.
"""
