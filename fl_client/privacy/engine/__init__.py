"""Ways to the same clipped sum, the quickest of which is chosen for a network: see `choice`.

`shares` says what one patient may add; `loop` takes one patient after the other, for any network; `one_pass` takes many at
once, with a rule for each layer (`rules`), and is believed only after it has agreed with the loop (`trial`).
"""
