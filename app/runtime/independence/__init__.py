"""A proof from the ONNX graph that the rows of a batch are independent.

``prove(path)`` walks the graph and finds the axis of each value that carries the rows. It decides, before any run,
whether requests may share a batch::

    proof = prove("models/digits/1/model.onnx")
    proof.verdict      # "independent", "mixed" or "unknown"
    proof.input_axes   # {"x": 0}: the axis along which requests are concatenated; None for an input that all rows share
    proof.output_axes  # {"logits": 0}: the axis along which results are split; None for an output equal for all rows
    proof.reason       # "node 'quant/DynamicQuantizeLinear' computes its scale over the whole tensor, rows included"

"independent" holds for any number of rows: running the graph on rows concatenated along ``input_axes`` gives the same
as running it on each row separately and concatenating along ``output_axes``, up to rounding. A batch may hold requests
under these conditions:

- the inputs of a request that have a row axis have the same number of rows,
- all other sizes are equal in all requests,
- inputs without a row axis are equal in all requests, element by element,
- no request gives an input of ``defaults``, because the proof takes its value from the file.

"mixed" means that a node combines, counts, numbers or repeats rows, or that its output size depends on the data.
"unknown" means that the analysis does not support a node or a shape. Neither may be batched.

Method: a value is a ``Tensor`` with the axis of its rows (``values``), its sizes are symbols (``sizes``), and shape
arithmetic is evaluated (``evaluate``). Each operator has a rule (``operators``) that returns its
outputs or raises a ``Decision``; an operator without a rule is not proven. Rows chosen by the data, as experts choose
theirs, are followed until they are written back (``picked``). Subgraphs and functions are walked (``walk``).
Weights are not read (``reader``), and the number of walked nodes is limited.
"""

from app.runtime.independence.proof import Proof, prove

__all__ = ["Proof", "prove"]
