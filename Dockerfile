# The image of a broker: the one static program, and the authorities that an S3 server's certificate may be signed by.
ARG GO_IMAGE=golang:1.26

FROM ${GO_IMAGE} AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG VERSION=unknown
# Without cgo the program needs nothing of the image it runs in.
RUN CGO_ENABLED=0 make build VERSION=${VERSION}
RUN mkdir /empty

FROM scratch
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /src/bin/varve /usr/local/bin/varve
# A volume takes its owner from the directory it is mounted on.
COPY --from=build --chown=65532:65532 /empty /var/lib/varve
ENV PATH=/usr/local/bin
USER 65532:65532
VOLUME /var/lib/varve
EXPOSE 9092 9644
# SIGTERM drains; give it the 20 seconds that may take (docker stop --time 30).
STOPSIGNAL SIGTERM
ENTRYPOINT ["varve"]
CMD ["broker", "--config", "/etc/varve/server.properties"]
