"""Operations worth a kernel of their own, each beside what defines it. They know torch and nothing of ulna.

`ulna.kernels.native` builds what is in C++; `ulna.kernels.sweep.dispatch.describe()` says which path sweeps take here.
"""
