import java.time.Duration;
import java.util.*;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.streams.*;
import org.apache.kafka.streams.errors.StreamsUncaughtExceptionHandler.StreamThreadExceptionResponse;
import org.apache.kafka.streams.kstream.KStream;

/**
 * Kafka Streams: `java -cp 'jars/*' WordCount.java BOOTSTRAP STATE_DIR INPUT OUTPUT` counts the words of the input, with
 * processing.guarantee=exactly_once_v2, and writes each count as it grows, until it is ended.
 */
public class WordCount {
    public static void main(String[] args) {
        Properties p = new Properties();
        p.put("bootstrap.servers", args[0]);
        p.put("application.id", "interop-streams");
        p.put("state.dir", args[1]);
        p.put("processing.guarantee", "exactly_once_v2");
        p.put("commit.interval.ms", "200");
        p.put("num.stream.threads", "2");
        p.put("statestore.cache.max.bytes", "0"); // every count goes out, none is overtaken by the next
        p.put("default.key.serde", Serdes.String().getClass());
        p.put("default.value.serde", Serdes.String().getClass());
        p.put("consumer.auto.offset.reset", "earliest");
        // A killed instance is missed after this time.
        p.put("consumer.session.timeout.ms", "6000");
        p.put("consumer.heartbeat.interval.ms", "1000");
        StreamsBuilder b = new StreamsBuilder();
        KStream<String, String> lines = b.stream(args[2]);
        lines.flatMapValues(line -> List.of(line.split(" "))).groupBy((key, word) -> word).count().toStream().mapValues(String::valueOf).to(args[3]);
        KafkaStreams s = new KafkaStreams(b.build(), p);
        s.setUncaughtExceptionHandler(e -> {
            e.printStackTrace();
            return StreamThreadExceptionResponse.SHUTDOWN_APPLICATION;
        });
        s.setStateListener((now, before) -> System.out.println(now));
        Runtime.getRuntime().addShutdownHook(new Thread(() -> s.close(Duration.ofSeconds(30))));
        s.start();
    }
}
