"""The hospital's ledger and door out as a Flower mod, for ClientApps that are not konsil's.

The app keeps its own training; the mod makes sure that the ledger is written before it begins, that it does not begin over
budget, and that nothing leaves but arrays like those that came and metrics that are on a list. What the event says must be
true: the mod can't see whether the app clips and adds noise (konsil's `fl_client.privacy.train` does).
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from flwr.app import Context, Message
from flwr.clientapp.typing import ClientAppCallable, Mod

from fl_client import release
from fl_client.privacy import Event, Ledger

LedgerOf = Callable[[Context], Ledger]
EventOf = Callable[[Message, Context], Event]


def ledger_mod(ledger: Ledger | LedgerOf, event: Event | EventOf, *, metrics: Collection[str] = ("num-examples",)) -> Mod:
    """A mod that pays for a message before the app sees it, and lets only a checked answer out.

    Parameters
    ----------
    ledger : Ledger, or a function of the context
        Whose budget pays. Take its path from the node's own configuration, never from the run's.
    event : Event, or a function of the message and the context
        What one answer of the app releases.
    metrics : collection of str
        Names of the metrics that may leave; others are dropped. Declare sizes in public rather than count them.

    Over budget, the coordinator gets an error reply with code `release.DECLINED` and the refusal in words. When the app
    raises, answers with an error of its own, or with arrays that differ in name, shape or dtype from those it was sent
    or are not finite, it gets code `release.FAILED` and a fixed sentence; the reason goes to the site's log.
    Give it to the functions that release something: `@app.train(mods=[ledger_mod(...)])`.
    """

    def pay_then_answer(question: Message, context: Context, call_next: ClientAppCallable) -> Message:
        sent = release.shapes(question)  # before the app sees the message: it may empty it
        book = ledger if isinstance(ledger, Ledger) else ledger(context)
        book.spend(event if isinstance(event, Event) else event(question, context))
        return release.checked(question, call_next(question, context), sent=sent, metrics=metrics)

    def mod(question: Message, context: Context, call_next: ClientAppCallable) -> Message:
        return release.guarded(lambda q, c: pay_then_answer(q, c, call_next))(question, context)

    return mod
