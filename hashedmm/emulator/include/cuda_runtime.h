// Everything that CUDA C needs is built in; sources that include this compile unchanged.
