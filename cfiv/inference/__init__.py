"""How sure an estimate is: intervals and bands of estimators that are linear in a fixed basis; see :func:`cfiv.infer`."""
