"""A proof from the ONNX graph that the rows of a batch are independent.

``prove(path)`` walks the graph and finds for every value which axis carries the rows, so that it can say before any run
whether requests may share one::

    proof = prove("models/digits/1/model.onnx")
    proof.verdict      # "independent", "mixed" or "unknown"
    proof.input_axes   # {"x": 0}: where the rows of requests are put together; None where all rows share an input
    proof.output_axes  # {"logits": 0}: where answers are cut apart; None where an output is the same for all rows
    proof.reason       # "node 'quant/DynamicQuantizeLinear' takes its scale over the whole tensor, rows included"

"independent" means, for any number of rows: what the graph computes from rows put together along ``input_axes`` is
what it computes from each of them alone, put together along ``output_axes``, up to rounding. A batch may hold requests
where

- all inputs of a request that have an axis have the same number of rows,
- all other sizes are equal in all requests,
- inputs without an axis are equal in all requests, element by element,
- no request gives an input of ``defaults``, as the proof takes its value from the file.

"mixed" means that a node brings rows together, counts or numbers them, repeats them, or gives as many as the data say;
"unknown" that a node or a shape is not followed. Neither may be batched.

How it works: a value is a ``Tensor`` with the axis of its rows (``values``), its sizes are symbols (``sizes``), and
what graphs compute from shapes is evaluated (``evaluate``). Each operator has a rule (``operators``) that gives its
outputs or raises a ``Decision``; an operator without a rule is not proven. Rows that the data choose, as experts do,
are followed to where they are written back (``picked``). Subgraphs and functions are walked
(``walk``). Weights are not read (``reader``), and the number of nodes walked is limited.
"""

from app.runtime.independence.proof import Proof, prove

__all__ = ["Proof", "prove"]
