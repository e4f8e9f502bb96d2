"""A server of this process, for as long as a test needs it."""

import contextlib
import threading
import time

from fl_server import serve


@contextlib.contextmanager
def running(config):
    """The server of this configuration on a port of the kernel's choice, in a thread."""
    server = serve._Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()
