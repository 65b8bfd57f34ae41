# What the base image brings before its own package: Python in a virtual environment without pip, and the libraries.
# libraries/: installed by the host's pip, so that nothing here needs a network.
ARG OS
FROM ${OS}
ENV PATH=/opt/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin VIRTUAL_ENV=/opt/venv
ARG PYTHON
RUN python3 -m venv --without-pip /opt/venv
COPY libraries /opt/venv/lib/${PYTHON}/site-packages
