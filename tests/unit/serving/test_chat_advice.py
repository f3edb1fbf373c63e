"""Where nothing useful answers, `serval chat` says what most likely helps."""

import httpx
import pytest

from protocol.errors import Unavailable
from serving.chat_client import served_model


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (httpx.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed"), "--ca"),
        (httpx.ConnectError("[SSL: WRONG_VERSION_NUMBER] wrong version number"), "http://"),
        (httpx.ReadError("[Errno 104] Connection reset by peer"), "https://"),
        (httpx.RemoteProtocolError("illegal status line"), "https://"),
        (httpx.ConnectError("[Errno 111] Connection refused"), "serval up"),
    ],
)
def test_what_helps(error: httpx.HTTPError, advice: str) -> None:
    def fail(request: httpx.Request) -> httpx.Response:
        raise error

    with (
        httpx.Client(base_url="http://127.0.0.1:1", transport=httpx.MockTransport(fail)) as client,
        pytest.raises(Unavailable, match=rf"; .*{advice}"),
    ):
        served_model(client)
