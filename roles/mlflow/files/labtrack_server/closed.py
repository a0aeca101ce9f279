"""What this server does not offer, each with a sentence that says what to use instead.

They make the server run programs, speak to other servers, or write where a client says.  The proxy passes them on only
so that people read a sentence; here they end, before MLflow sees them.
"""

import json
import re

API = r"/(?:ajax-)?api/[23]\.0/"
ML = API + r"mlflow/"
HERE = "This lab's server does not offer "

CLOSED = [
    (re.compile(pattern), HERE + sentence)
    for pattern, sentence in (
        (
            ML + r"runs/create-promptlab-run",
            "the prompt lab. To fix: log the run from your own script, with mlflow.start_run().",
        ),
        (
            ML + r"upload-artifact",
            "uploads by this route. To fix: use mlflow.log_artifact() in your own script.",
        ),
        (ML + r"webhooks(/.*)?", "webhooks. To fix: ask for changes from your own side, with mlflow.search_runs()."),
        (
            rf"/gateway(/.*)?|{ML}(gateway|gateway-proxy)(/.*)?",
            "the AI gateway. To fix: call the model's provider from your own script, with your own key.",
        ),
        (ML + r"assistant(/.*)?", "the assistant. To fix: use one on your own computer."),
        (
            rf"{ML}scorer/.*|{ML}genai/.*|{ML}scorers/online-config",
            "judges that run on the server. To fix: run them in your own script, with mlflow.genai.evaluate().",
        ),
        (
            rf"{API}jobs(/.*)?|{ML}(jobs|prompt-optimization|get-online-trace-details)(/.*)?",
            "jobs on the server. To fix: run the work in your own script, and log its results.",
        ),
        (ML + r"issues(/.*)?", "the detection of issues. To fix: look at traces with mlflow.search_traces()."),
        (ML + r"mcp-servers(/.*)?", "the registry of MCP servers. To fix: keep the list in your own repository."),
        (ML + r"skills(/.*)?", "the registry of skills. To fix: keep them in your own repository."),
        (ML + r"demo(/.*)?", "demonstration data. To fix: log a run of your own (examples/)."),
        (ML + r"workspaces(/.*)?", "workspaces. To fix: use experiments, and permissions on them."),
    )
]

# The page of runs asks each time which endpoints the gateway has, and shows a refusal as an error of its own.
NO_ENDPOINTS = ("GET", "/ajax-api/2.0/mlflow/gateway-proxy")


def sentence(path):
    """What to say about PATH where it is closed; None where it is open."""
    return next((said for pattern, said in CLOSED if pattern.fullmatch(path)), None)


class Closed:
    """Answers with a sentence for what is closed, and passes all else on to APP."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http" or not (said := sentence(scope["path"])):
            await self.app(scope, receive, send)
            return
        status, answer = 404, {"error_code": "ENDPOINT_NOT_FOUND", "message": said}
        if (scope["method"], scope["path"]) == NO_ENDPOINTS:
            status, answer = 200, {"endpoints": []}
        body = json.dumps(answer).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})
