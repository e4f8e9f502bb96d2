"""A coordinator and hospitals as processes of their own, over TLS on the loopback, for as long as a test needs them."""

import contextlib

import yaml

from simulation.federation.programs import Daemon, free_port, konsil_site, konsil_study, run


class Network:
    """A coordinator in `folder`/coordinator, which doesn't track studies in MLflow.

    Commands write to `folder`/commands.log, each daemon to a log of its own there.
    """

    def __init__(self, folder):
        self.folder, self.coordinator, self.log = folder, folder / "coordinator", folder / "commands.log"
        self.port = free_port()
        self.serving = None
        run(konsil_study("init", str(self.coordinator), "--host", "localhost", "--port", str(self.port)), log=self.log)
        settings = self.coordinator / "coordinator.yaml"
        settings.write_text(yaml.safe_dump({**yaml.safe_load(settings.read_text()), "tracking": {"mlflow": None}}))

    def command(self, *words):
        """What the coordinator's command says. Raises `CommandFailed` if it isn't done."""
        return run(konsil_study(*words, "--folder", str(self.coordinator)), log=self.log)

    def serve(self, log="serve.log"):
        """The coordinator's daemon, which may not be ready yet."""
        self.serving = Daemon("serve", konsil_study("serve", "--folder", str(self.coordinator)), log=self.folder / log)
        return self.serving

    def join(self, name, settings):
        """Register a hospital's key; its daemon."""
        token = self.command("join-token", name).strip()
        where = ("--coordinator", f"localhost:{self.port}", "--root-certificates", str(self.coordinator / "ca.crt"))
        run(konsil_site(settings, "join", token, *where), log=self.log)
        return Daemon(name, konsil_site(settings, "start"), log=self.folder / f"{name}.log")


@contextlib.contextmanager
def connected(folder, sites):
    """Hospitals {name: path of its settings} that have joined a coordinator; at the end their daemons stop with status 0."""
    network, daemons = Network(folder), []
    with network.serve() as serving:
        serving.wait_for("certificate valid until")
        try:
            for name, settings in sites.items():
                daemons.append(network.join(name, settings))
            yield network
        finally:
            stopped = [daemon.stop() for daemon in daemons]
    assert stopped == [0] * len(sites)
